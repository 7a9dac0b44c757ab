"""Second moments of the inputs and output gradients of layers: what a change of their weights does to the logits."""
