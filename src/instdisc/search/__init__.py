"""A collection looked through: exact search, copies and look-alikes, outliers, labels from a few.

catalogue.py     ids, positions, labels, tags: what is known of pictures without their vectors, and filters
index.py         a catalogue with one unit vector a picture; search is exact, by blocks
store.py         pictures added and removed later, on disk beside the bank
pairs.py         all pairs above a similarity, all neighbours of all: in blocks, in fixed memory, exactly
approximate.py   nearly all neighbours, sooner: an HNSW graph and exact ranking
postgres.py      a copy on a PostgreSQL server with pgvector
groups.py        groups of look-alikes by complete linkage
fingerprints.py  of each picture a hash of its bytes and small thumbnails, on disk, and a signature
alignment.py     thumbnails laid over each other, turned, mirrored and cropped as fits best
copies.py        which pictures are copies, by their bytes or pixels
mahalanobis.py   outlier scores: how unlike all others a picture is
graph.py         each picture's ten nearest, kept on disk
spreading.py     a few labels spread over that graph, and how far to trust them
labelling.py     what to label next
"""

# The cosine of two look-alikes, by the kind of vectors: whitened ones of different pictures lie farther apart.
THRESHOLDS = {"search": 0.85, "embedding": 0.95}
