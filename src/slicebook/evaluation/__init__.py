"""The evaluation of a model on patients it was not trained on."""
