"""Brain-imaging models on one data path: a vision-language model, self-supervised pretraining, study-level findings."""
