"""What lies on the disk: model folders, checkpoints, the Hugging Face hub, files that are whole or not there."""
