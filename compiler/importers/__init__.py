"""Networks that other tools made, brought onto our graph."""
