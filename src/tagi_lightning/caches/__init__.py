"""What is computed once and read often: adapters, instruction states, the teacher's logits."""
