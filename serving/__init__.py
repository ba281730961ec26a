"""The server: a model repository behind the Open Inference Protocol."""
