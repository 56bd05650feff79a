"""Teachers: a bank of LoRA adapters trained together, one a category, and what each gains."""
