"""How good predictions are: tensors in, figures of a whole epoch out; with intervals."""
