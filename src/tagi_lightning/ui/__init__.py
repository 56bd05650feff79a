"""A page on which a trained model is tried: instructions in, adapters, answers and PEFT folders out."""
