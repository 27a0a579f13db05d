"""One copy to each other node, over gloo. Knows leaders and envelopes, not what is in a message."""
