"""What probabilities, uncertainty and case scores of a model are worth on labelled cases."""
