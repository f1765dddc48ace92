// Arithmetic in the carry chains of ECP5, two positions a CCU2C cell. A position has a table of its four inputs,
// INIT, which says whether a carry passes through it, and another of A and B alone, INIT[3:0], which says what carry
// leaves it otherwise. Synthesis tools leave half of that table empty in their adders; here it holds an AND gate or two.
//
// Simulation sees the sums as they are defined, for that is much faster; synthesis must define SYNTHESIS (Yosys does).
//
// Source: Lattice FPGA-TN-02045, "ECP5 and ECP5-5G Family Data Sheet"; the cell as in yosys, lattice/ccu2c_sim.vh.

// o = a * digit, where digit is 0 to 3, or in two's complement if it is NEGATIVE; a is signed or not.
module carry_row #(
    parameter BITS = 8,
    parameter SIGNED = 1,
    parameter NEGATIVE = 0
) (
    input [BITS-1:0] a,
    input [1:0] digit,
    output [BITS+1:0] o
);
    wire top = SIGNED != 0 && a[BITS-1];
`ifdef SYNTHESIS
    localparam PAIRS = (BITS + 3) / 2;
    // (A & B) ^ (C & D), and where no carry passes A & B; a negative row has ~(A & B), and begins with a carry.
    localparam [15:0] INIT = NEGATIVE != 0 ? 16'h8777 : 16'h7888;
    wire [BITS+2:0] one = {{3{top}}, a};
    wire [BITS+2:0] two = {{2{top}}, a, 1'b0};
    wire [2*PAIRS-1:0] sum;
    wire [PAIRS:0] carry;
    assign carry[0] = NEGATIVE != 0;
    genvar n;
    generate
        for (n = 0; n < PAIRS; n = n + 1) begin : pairs
            CCU2C #(.INIT0(INIT), .INIT1(INIT), .INJECT1_0("NO"), .INJECT1_1("NO")) pair (
                .CIN(carry[n]),
                .A0(two[2*n]), .B0(digit[1]), .C0(one[2*n]), .D0(digit[0]), .S0(sum[2*n]),
                .A1(two[2*n+1]), .B1(digit[1]), .C1(one[2*n+1]), .D1(digit[0]), .S1(sum[2*n+1]),
                .COUT(carry[n+1])
            );
        end
    endgenerate
    assign o = sum[BITS+1:0];
`else
    wire [BITS+1:0] once = digit[0] ? {{2{top}}, a} : {(BITS + 2){1'b0}};
    wire [BITS+1:0] twice = digit[1] ? {top, a, 1'b0} : {(BITS + 2){1'b0}};
    assign o = NEGATIVE != 0 ? once - twice : once + twice;
`endif
endmodule

// o = (first ? 0 : a) + term + one, where the term is signed and not longer than the sum.
module carry_accumulate #(
    parameter BITS = 20,
    parameter TERM_BITS = 16
) (
    input [BITS-1:0] a,
    input first,
    input [TERM_BITS-1:0] term,
    input one,
    output [BITS-1:0] o
);
`ifdef SYNTHESIS
    localparam PAIRS = (BITS + 1) / 2;
    localparam [15:0] INIT = 16'hd2d2;  // (A & ~B) ^ C, and where no carry passes A & ~B
    wire [2*PAIRS-1:0] old = a;
    wire [2*PAIRS-1:0] more = {{(2*PAIRS){term[TERM_BITS-1]}}, term};
    wire [2*PAIRS-1:0] sum;
    wire [PAIRS:0] carry;
    assign carry[0] = one;
    genvar n;
    generate
        for (n = 0; n < PAIRS; n = n + 1) begin : pairs
            CCU2C #(.INIT0(INIT), .INIT1(INIT), .INJECT1_0("NO"), .INJECT1_1("NO")) pair (
                .CIN(carry[n]),
                .A0(old[2*n]), .B0(first), .C0(more[2*n]), .D0(1'b0), .S0(sum[2*n]),
                .A1(old[2*n+1]), .B1(first), .C1(more[2*n+1]), .D1(1'b0), .S1(sum[2*n+1]),
                .COUT(carry[n+1])
            );
        end
    endgenerate
    assign o = sum[BITS-1:0];
`else
    wire [BITS:0] more = {{(BITS+1-TERM_BITS){term[TERM_BITS-1]}}, term};
    wire [BITS:0] up = {{BITS{1'b0}}, one};
    assign o = (first ? {BITS{1'b0}} : a) + more[BITS-1:0] + up[BITS-1:0];
`endif
endmodule
