"""Jobs that one request makes, to compare hyperparameters by their validation loss."""
