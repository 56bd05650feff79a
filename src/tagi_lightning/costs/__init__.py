"""What stages and instructions cost: parameters, operations, memory, measured or told from shapes."""
