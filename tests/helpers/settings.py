"""Settings of the tiny models that tests train."""

SMALL = (
    *("tokenizer.scaling_rates=[8, 2]", "tokenizer.codebook_sizes=[16, 8]", "tokenizer.code_dim=4"),
    *("tokenizer.width=16", "tokenizer.residual_layers=1", "training.learning_rate=3e-3"),
    *("training.batch_size=4", "training.epochs=3", "training.augment=null"),
    "training.loss.denoise_strength=2",
    *("labels.tokenizer.codebook_sizes=[16]", "labels.tokenizer.width=16", "labels.training.epochs=2"),
    *("decoder.widths=[32, 32]", "decoder.embedding=16", "decoder.training.epochs=2"),
    "decoder.training.batch_size=4",
    *("prior.widths=[32]", "prior.blocks=1", "prior.embedding=16"),
    *("prior.training.learning_rate=3e-3", "prior.training.batch_size=4", "prior.training.epochs=4"),
    *("prior.training.validate_every=2", "prior.training.num_views=3"),
)
