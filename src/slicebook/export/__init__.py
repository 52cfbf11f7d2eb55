"""Write models, generated sets and reconstructions in the formats of other programs."""
