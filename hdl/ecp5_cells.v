// Simulation models of two ECP5 cells, in exactly the modes that this package instantiates: MULT18X18D with input and
// output registers, and DP16KD with 9- or 18-bit words, both output registers and one clock. Any other parameter value,
// and any other level at a pin that is tied here, stops the simulation. Ports and parameters that are not listed are
// not modelled. Synthesis has these cells built in: keep this file out of it.
//
// Registers start unknown, memories with their INITVAL.
//
// Sources: Lattice FPGA-TN-02205, "ECP5 and ECP5-5G sysDSP Usage Guide"; Lattice FPGA-TN-02204, "ECP5 and ECP5-5G
// Memory Usage Guide"; INITVAL and the address pins are laid out as in yosys, lattice/brams_map_16kd.v.

// P = A * B, signed: operands are registered, then the product.
module MULT18X18D (
    input A17, A16, A15, A14, A13, A12, A11, A10, A9,
        A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input B17, B16, B15, B14, B13, B12, B11, B10, B9,
        B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input CLK0, CE0, RST0,
    input SIGNEDA, SIGNEDB,  // 1: two's complement
    input SOURCEA, SOURCEB,  // 0: A and B, not the shift-register inputs
    output P35, P34, P33, P32, P31, P30, P29, P28, P27,
        P26, P25, P24, P23, P22, P21, P20, P19, P18,
        P17, P16, P15, P14, P13, P12, P11, P10, P9,
        P8, P7, P6, P5, P4, P3, P2, P1, P0
);
    parameter REG_INPUTA_CLK = "NONE";
    parameter REG_INPUTA_CE = "CE0";
    parameter REG_INPUTA_RST = "RST0";
    parameter REG_INPUTB_CLK = "NONE";
    parameter REG_INPUTB_CE = "CE0";
    parameter REG_INPUTB_RST = "RST0";
    parameter REG_INPUTC_CLK = "NONE";
    parameter REG_PIPELINE_CLK = "NONE";
    parameter REG_PIPELINE_CE = "CE0";
    parameter REG_PIPELINE_RST = "RST0";
    parameter REG_OUTPUT_CLK = "NONE";
    parameter REG_OUTPUT_CE = "CE0";
    parameter REG_OUTPUT_RST = "RST0";
    parameter CLK0_DIV = "ENABLED";
    parameter HIGHSPEED_CLK = "NONE";
    parameter GSR = "ENABLED";
    parameter CAS_MATCH_REG = "FALSE";
    parameter SOURCEB_MODE = "B_SHIFT";
    parameter MULT_BYPASS = "DISABLED";
    parameter RESETMODE = "SYNC";

    initial
        if (REG_INPUTA_CLK != "CLK0" || REG_INPUTA_CE != "CE0" || REG_INPUTA_RST != "RST0"
            || REG_INPUTB_CLK != "CLK0" || REG_INPUTB_CE != "CE0" || REG_INPUTB_RST != "RST0"
            || REG_INPUTC_CLK != "NONE" || REG_PIPELINE_CLK != "NONE"
            || REG_PIPELINE_CE != "CE0" || REG_PIPELINE_RST != "RST0"
            || REG_OUTPUT_CLK != "CLK0" || REG_OUTPUT_CE != "CE0" || REG_OUTPUT_RST != "RST0"
            || CLK0_DIV != "ENABLED" || HIGHSPEED_CLK != "NONE" || GSR != "ENABLED" || CAS_MATCH_REG != "FALSE"
            || SOURCEB_MODE != "B_SHIFT" || MULT_BYPASS != "DISABLED" || RESETMODE != "SYNC") begin
            $display("ERROR: %m: this model of MULT18X18D has no such parameter value");
            $finish;
        end

    reg signed [17:0] a;
    reg signed [17:0] b;
    reg signed [35:0] p;
    assign {
        P35, P34, P33, P32, P31, P30, P29, P28, P27,
        P26, P25, P24, P23, P22, P21, P20, P19, P18,
        P17, P16, P15, P14, P13, P12, P11, P10, P9,
        P8, P7, P6, P5, P4, P3, P2, P1, P0
    } = p;

    always @(posedge CLK0) begin
        if ({CE0, RST0, SIGNEDA, SIGNEDB, SOURCEA, SOURCEB} !== 6'b101100) begin
            $display("ERROR: %m: this model of MULT18X18D needs CE0 and SIGNED high, RST0 and SOURCE low");
            $finish;
        end
        a <= {
            A17, A16, A15, A14, A13, A12, A11, A10, A9,
            A8, A7, A6, A5, A4, A3, A2, A1, A0
        };
        b <= {
            B17, B16, B15, B14, B13, B12, B11, B10, B9,
            B8, B7, B6, B5, B4, B3, B2, B1, B0
        };
        p <= a * b;
    end
endmodule

// Two ports to 1024 words of 18 bits, or 2048 of 9: a word read appears two clocks after its address.
//
// The word address begins at address pin 4 (18 bits) or 3 (9 bits); pins 0 and 1 are byte enables of an 18-bit write.
// A port that writes keeps its output (write mode NORMAL). A bit that one port reads while the other writes it is read
// as unknown; a bit that both write becomes unknown.
module DP16KD (
    input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9,
        DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0,
    input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5,
        ADA4, ADA3, ADA2, ADA1, ADA0,
    input CLKA, CEA, OCEA, WEA, RSTA, CSA2, CSA1, CSA0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9,
        DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0,
    input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9,
        DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
    input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5,
        ADB4, ADB3, ADB2, ADB1, ADB0,
    input CLKB, CEB, OCEB, WEB, RSTB, CSB2, CSB1, CSB0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9,
        DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18;
    parameter DATA_WIDTH_B = 18;
    parameter REGMODE_A = "NOREG";
    parameter REGMODE_B = "NOREG";
    parameter RESETMODE = "SYNC";
    parameter ASYNC_RESET_RELEASE = "SYNC";
    parameter CSDECODE_A = "0b000";
    parameter CSDECODE_B = "0b000";
    parameter WRITEMODE_A = "NORMAL";
    parameter WRITEMODE_B = "NORMAL";
    parameter GSR = "ENABLED";
    parameter [319:0] INITVAL_00 = 320'd0;
    parameter [319:0] INITVAL_01 = 320'd0;
    parameter [319:0] INITVAL_02 = 320'd0;
    parameter [319:0] INITVAL_03 = 320'd0;
    parameter [319:0] INITVAL_04 = 320'd0;
    parameter [319:0] INITVAL_05 = 320'd0;
    parameter [319:0] INITVAL_06 = 320'd0;
    parameter [319:0] INITVAL_07 = 320'd0;
    parameter [319:0] INITVAL_08 = 320'd0;
    parameter [319:0] INITVAL_09 = 320'd0;
    parameter [319:0] INITVAL_0A = 320'd0;
    parameter [319:0] INITVAL_0B = 320'd0;
    parameter [319:0] INITVAL_0C = 320'd0;
    parameter [319:0] INITVAL_0D = 320'd0;
    parameter [319:0] INITVAL_0E = 320'd0;
    parameter [319:0] INITVAL_0F = 320'd0;
    parameter [319:0] INITVAL_10 = 320'd0;
    parameter [319:0] INITVAL_11 = 320'd0;
    parameter [319:0] INITVAL_12 = 320'd0;
    parameter [319:0] INITVAL_13 = 320'd0;
    parameter [319:0] INITVAL_14 = 320'd0;
    parameter [319:0] INITVAL_15 = 320'd0;
    parameter [319:0] INITVAL_16 = 320'd0;
    parameter [319:0] INITVAL_17 = 320'd0;
    parameter [319:0] INITVAL_18 = 320'd0;
    parameter [319:0] INITVAL_19 = 320'd0;
    parameter [319:0] INITVAL_1A = 320'd0;
    parameter [319:0] INITVAL_1B = 320'd0;
    parameter [319:0] INITVAL_1C = 320'd0;
    parameter [319:0] INITVAL_1D = 320'd0;
    parameter [319:0] INITVAL_1E = 320'd0;
    parameter [319:0] INITVAL_1F = 320'd0;
    parameter [319:0] INITVAL_20 = 320'd0;
    parameter [319:0] INITVAL_21 = 320'd0;
    parameter [319:0] INITVAL_22 = 320'd0;
    parameter [319:0] INITVAL_23 = 320'd0;
    parameter [319:0] INITVAL_24 = 320'd0;
    parameter [319:0] INITVAL_25 = 320'd0;
    parameter [319:0] INITVAL_26 = 320'd0;
    parameter [319:0] INITVAL_27 = 320'd0;
    parameter [319:0] INITVAL_28 = 320'd0;
    parameter [319:0] INITVAL_29 = 320'd0;
    parameter [319:0] INITVAL_2A = 320'd0;
    parameter [319:0] INITVAL_2B = 320'd0;
    parameter [319:0] INITVAL_2C = 320'd0;
    parameter [319:0] INITVAL_2D = 320'd0;
    parameter [319:0] INITVAL_2E = 320'd0;
    parameter [319:0] INITVAL_2F = 320'd0;
    parameter [319:0] INITVAL_30 = 320'd0;
    parameter [319:0] INITVAL_31 = 320'd0;
    parameter [319:0] INITVAL_32 = 320'd0;
    parameter [319:0] INITVAL_33 = 320'd0;
    parameter [319:0] INITVAL_34 = 320'd0;
    parameter [319:0] INITVAL_35 = 320'd0;
    parameter [319:0] INITVAL_36 = 320'd0;
    parameter [319:0] INITVAL_37 = 320'd0;
    parameter [319:0] INITVAL_38 = 320'd0;
    parameter [319:0] INITVAL_39 = 320'd0;
    parameter [319:0] INITVAL_3A = 320'd0;
    parameter [319:0] INITVAL_3B = 320'd0;
    parameter [319:0] INITVAL_3C = 320'd0;
    parameter [319:0] INITVAL_3D = 320'd0;
    parameter [319:0] INITVAL_3E = 320'd0;
    parameter [319:0] INITVAL_3F = 320'd0;

    initial
        if ((DATA_WIDTH_A != 18 && DATA_WIDTH_A != 9) || (DATA_WIDTH_B != 18 && DATA_WIDTH_B != 9)
            || REGMODE_A != "OUTREG" || REGMODE_B != "OUTREG" || RESETMODE != "SYNC" || ASYNC_RESET_RELEASE != "SYNC"
            || CSDECODE_A != "0b000" || CSDECODE_B != "0b000" || WRITEMODE_A != "NORMAL" || WRITEMODE_B != "NORMAL"
            || GSR != "AUTO") begin
            $display("ERROR: %m: this model of DP16KD has no such parameter value");
            $finish;
        end

    // Sixteen words a line, 20 bits apart, the first word lowest.
    reg [17:0] store [0:1023];
    task load(input [5:0] line, input [319:0] words);
        integer n;
        for (n = 0; n < 16; n = n + 1) store[{line, n[3:0]}] = words[20*n +: 18];
    endtask
    initial begin
        load(6'h00, INITVAL_00); load(6'h01, INITVAL_01); load(6'h02, INITVAL_02); load(6'h03, INITVAL_03);
        load(6'h04, INITVAL_04); load(6'h05, INITVAL_05); load(6'h06, INITVAL_06); load(6'h07, INITVAL_07);
        load(6'h08, INITVAL_08); load(6'h09, INITVAL_09); load(6'h0A, INITVAL_0A); load(6'h0B, INITVAL_0B);
        load(6'h0C, INITVAL_0C); load(6'h0D, INITVAL_0D); load(6'h0E, INITVAL_0E); load(6'h0F, INITVAL_0F);
        load(6'h10, INITVAL_10); load(6'h11, INITVAL_11); load(6'h12, INITVAL_12); load(6'h13, INITVAL_13);
        load(6'h14, INITVAL_14); load(6'h15, INITVAL_15); load(6'h16, INITVAL_16); load(6'h17, INITVAL_17);
        load(6'h18, INITVAL_18); load(6'h19, INITVAL_19); load(6'h1A, INITVAL_1A); load(6'h1B, INITVAL_1B);
        load(6'h1C, INITVAL_1C); load(6'h1D, INITVAL_1D); load(6'h1E, INITVAL_1E); load(6'h1F, INITVAL_1F);
        load(6'h20, INITVAL_20); load(6'h21, INITVAL_21); load(6'h22, INITVAL_22); load(6'h23, INITVAL_23);
        load(6'h24, INITVAL_24); load(6'h25, INITVAL_25); load(6'h26, INITVAL_26); load(6'h27, INITVAL_27);
        load(6'h28, INITVAL_28); load(6'h29, INITVAL_29); load(6'h2A, INITVAL_2A); load(6'h2B, INITVAL_2B);
        load(6'h2C, INITVAL_2C); load(6'h2D, INITVAL_2D); load(6'h2E, INITVAL_2E); load(6'h2F, INITVAL_2F);
        load(6'h30, INITVAL_30); load(6'h31, INITVAL_31); load(6'h32, INITVAL_32); load(6'h33, INITVAL_33);
        load(6'h34, INITVAL_34); load(6'h35, INITVAL_35); load(6'h36, INITVAL_36); load(6'h37, INITVAL_37);
        load(6'h38, INITVAL_38); load(6'h39, INITVAL_39); load(6'h3A, INITVAL_3A); load(6'h3B, INITVAL_3B);
        load(6'h3C, INITVAL_3C); load(6'h3D, INITVAL_3D); load(6'h3E, INITVAL_3E); load(6'h3F, INITVAL_3F);
    end

    // Found by each port in its word, written by it, and lost to it because the other port writes: all of this clock.
    reg [13:0] address_a, address_b;
    reg [17:0] found_a, written_a, lost_a, word_a;
    reg [17:0] found_b, written_b, lost_b, word_b;

    reg [17:0] read_a, out_a;
    reg [17:0] read_b, out_b;
    assign {
        DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9,
        DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0
    } = out_a;
    assign {
        DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9,
        DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
    } = out_b;

    // Evaluated once a clock and not with every change of a pin, so that designs of many blocks simulate fast.
    // verilator lint_off BLKSEQ
    always @(posedge CLKA) begin
        if ({CEA, OCEA, RSTA, CSA2, CSA1, CSA0, CEB, OCEB, RSTB, CSB2, CSB1, CSB0} !== 12'b110000110000) begin
            $display("ERROR: %m: this model of DP16KD needs CE and OCE high, RST and CS low, at both ports");
            $finish;
        end
        address_a = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
        address_b = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
        found_a = store[address_a[13:4]];
        found_b = store[address_b[13:4]];
        if (WEA !== 1'b0 || WEB !== 1'b0) begin
            word_a = {
                DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9,
                DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0
            };
            word_b = {
                DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9,
                DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0
            };
            if (DATA_WIDTH_A == 9) word_a = {2{word_a[8:0]}};
            if (DATA_WIDTH_B == 9) word_b = {2{word_b[8:0]}};
            written_a = {18{WEA}} & (DATA_WIDTH_A == 9
                ? {{9{address_a[3]}}, {9{~address_a[3]}}} : {{9{address_a[1]}}, {9{address_a[0]}}});
            written_b = {18{WEB}} & (DATA_WIDTH_B == 9
                ? {{9{address_b[3]}}, {9{~address_b[3]}}} : {{9{address_b[1]}}, {9{address_b[0]}}});
            lost_a = address_a[13:4] == address_b[13:4] ? written_b : 18'd0;
            lost_b = address_a[13:4] == address_b[13:4] ? written_a : 18'd0;
            // Both statements store the same where it is the same word.
            if (WEA !== 1'b0)
                store[address_a[13:4]] <= (found_a & ~written_a & ~lost_a) | (word_a & written_a & ~lost_a)
                    | (word_b & lost_a & ~written_a) | ({18{1'bx}} & written_a & lost_a);
            if (WEB !== 1'b0)
                store[address_b[13:4]] <= (found_b & ~written_b & ~lost_b) | (word_b & written_b & ~lost_b)
                    | (word_a & lost_b & ~written_b) | ({18{1'bx}} & written_b & lost_b);
            found_a = (found_a & ~lost_a) | ({18{1'bx}} & lost_a);
            found_b = (found_b & ~lost_b) | ({18{1'bx}} & lost_b);
        end
        if (DATA_WIDTH_A == 9) found_a = {{9{1'bx}}, address_a[3] ? found_a[17:9] : found_a[8:0]};
        if (DATA_WIDTH_B == 9) found_b = {{9{1'bx}}, address_b[3] ? found_b[17:9] : found_b[8:0]};
        if (WEA !== 1'b1) read_a <= found_a;
        if (WEB !== 1'b1) read_b <= found_b;
        out_a <= read_a;
        out_b <= read_b;
    end
    // verilator lint_on BLKSEQ

    always @(posedge CLKB)
        if (CLKA !== 1'b1) begin
            $display("ERROR: %m: this model of DP16KD needs one clock at both ports");
            $finish;
        end
endmodule
