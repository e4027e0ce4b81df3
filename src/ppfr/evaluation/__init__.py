"""How well a method recognises and what it costs, each figure with its uncertainty.

`evaluate` runs a model on faces, `heterogeneous` on the folds of a protocol with two modalities; `verification`,
`identification` and `roc` are arithmetic on embeddings and scores, `similarity` on images; `cost` measures
parameters, multiply-adds, time and bytes; `statistics` holds the bootstrap that all of them share.
"""
