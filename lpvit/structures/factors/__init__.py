"""Low-rank factors: a layer as two thinner ones, chosen by what its inputs are and what the logits feel of its outputs.

O, I = output and input features of a layer; r = rank.
"""
