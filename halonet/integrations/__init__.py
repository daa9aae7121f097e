"""Other libraries, both ways: timm and the Hugging Face Hub. Nothing else imports these."""
