"""What a set of vectors is worth: tensors in, numbers out.

knn: weighted nearest-neighbour accuracy. baselines: the same on raw pixels and on an untrained encoder.
quality: label-free health (alignment, uniformity, effective rank, collapse). Nothing here trains, writes or decodes.
"""
