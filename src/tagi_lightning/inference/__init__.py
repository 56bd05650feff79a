"""A trained model in use: strings in, adapters and strings out, without Lightning."""
