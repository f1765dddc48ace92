// Simulation model of SB_MAC16 of iCE40 UltraPlus, in exactly the modes that this package instantiates: two multipliers of
// 8x8 bits, or one of 16x16, with registers at the operands and behind the products and, or not, behind the adder. Any other parameter value, and any
// other level at a pin that is tied here, stops the simulation. The outputs CO, ACCUMCO and SIGNEXTOUT are not modelled.
// Synthesis has this cell built in: keep this file out of it.
//
// Registers start unknown.
//
// Sources: Lattice FPGA-TN-02007, "DSP Function Usage Guide for iCE40 Devices"; Lattice, "iCE Technology Library".

// O = A * B two clocks later, or three through the adder, by halves where MODE_8x8; A and B have a sign each where A_SIGNED and B_SIGNED say so.
module SB_MAC16 (
    input CLK, CE,
    input [15:0] A, B, C, D,
    input AHOLD, BHOLD, CHOLD, DHOLD,
    input IRSTTOP, IRSTBOT, ORSTTOP, ORSTBOT,
    input OLOADTOP, OLOADBOT, ADDSUBTOP, ADDSUBBOT, OHOLDTOP, OHOLDBOT,
    input CI, ACCUMCI, SIGNEXTIN,
    output [31:0] O
);
    parameter [0:0] NEG_TRIGGER = 0;
    parameter [0:0] A_REG = 0;
    parameter [0:0] B_REG = 0;
    parameter [0:0] C_REG = 0;
    parameter [0:0] D_REG = 0;
    parameter [0:0] TOP_8x8_MULT_REG = 0;
    parameter [0:0] BOT_8x8_MULT_REG = 0;
    parameter [0:0] PIPELINE_16x16_MULT_REG1 = 0;
    parameter [0:0] PIPELINE_16x16_MULT_REG2 = 0;
    parameter [1:0] TOPOUTPUT_SELECT = 0;
    parameter [1:0] TOPADDSUB_LOWERINPUT = 0;
    parameter [0:0] TOPADDSUB_UPPERINPUT = 0;
    parameter [1:0] TOPADDSUB_CARRYSELECT = 0;
    parameter [1:0] BOTOUTPUT_SELECT = 0;
    parameter [1:0] BOTADDSUB_LOWERINPUT = 0;
    parameter [0:0] BOTADDSUB_UPPERINPUT = 0;
    parameter [1:0] BOTADDSUB_CARRYSELECT = 0;
    parameter [0:0] MODE_8x8 = 0;
    parameter [0:0] A_SIGNED = 0;
    parameter [0:0] B_SIGNED = 0;

    localparam [6:0] REGISTERS = {
        A_REG, B_REG, C_REG, D_REG, TOP_8x8_MULT_REG, BOT_8x8_MULT_REG, PIPELINE_16x16_MULT_REG2
    };
    // What comes out: the products themselves, or, a clock later, their sum with C and D, which are zero.
    localparam [3:0] SELECT = {TOPOUTPUT_SELECT, BOTOUTPUT_SELECT};
    localparam [9:0] ADDER = {
        TOPADDSUB_LOWERINPUT, TOPADDSUB_UPPERINPUT, TOPADDSUB_CARRYSELECT,
        BOTADDSUB_LOWERINPUT, BOTADDSUB_UPPERINPUT, BOTADDSUB_CARRYSELECT
    };
    localparam PRODUCTS = SELECT == (MODE_8x8 ? 4'b1010 : 4'b1111) && ADDER == 10'd0;
    localparam SUMS = SELECT == 4'b0101 && ADDER == (MODE_8x8 ? 10'b0110001100 : 10'b1010010100);

    initial
        if (NEG_TRIGGER || PIPELINE_16x16_MULT_REG1 || !B_SIGNED || !(PRODUCTS || SUMS)
            || REGISTERS != (MODE_8x8 ? 7'b1100110 : 7'b1100001)) begin
            $display("ERROR: %m: this model of SB_MAC16 has no such parameter value");
            $finish;
        end

    reg [15:0] a;
    reg [15:0] b;
    reg [31:0] p;
    reg [31:0] s;
    assign O = SUMS ? s : p;

    wire signed [8:0] a_high = {A_SIGNED && a[15], a[15:8]};
    wire signed [8:0] a_low = {A_SIGNED && a[7], a[7:0]};
    wire signed [16:0] a_whole = {A_SIGNED && a[15], a};
    wire signed [7:0] b_high = b[15:8];
    wire signed [7:0] b_low = b[7:0];
    wire signed [15:0] b_whole = b;
    wire signed [15:0] p_high = a_high * b_high;
    wire signed [15:0] p_low = a_low * b_low;
    wire signed [31:0] p_whole = a_whole * b_whole;

    always @(posedge CLK) begin
        if (CE !== 1'b1 || {
            C, D, AHOLD, BHOLD, CHOLD, DHOLD, IRSTTOP, IRSTBOT, ORSTTOP, ORSTBOT,
            OLOADTOP, OLOADBOT, ADDSUBTOP, ADDSUBBOT, OHOLDTOP, OHOLDBOT, CI, ACCUMCI, SIGNEXTIN
        } !== 49'd0) begin
            $display("ERROR: %m: this model of SB_MAC16 needs CE high and all its inputs but A and B low");
            $finish;
        end
        a <= A;
        b <= B;
        s <= p;
        p <= MODE_8x8 ? {p_high, p_low} : p_whole;
    end
endmodule
