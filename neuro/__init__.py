"""Brain-imaging models on one data path.

A vision-language model, self-supervised pretraining, study-level findings.
"""
