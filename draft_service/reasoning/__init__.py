"""What models that reason say before they answer: told apart from the answer, and left alone by its grammar."""
