"""A collection looked through by its vectors: exact search, near-duplicates, outliers, labels from a few.

index.py         one unit vector a picture, with filters; search is exact, by blocks
store.py         pictures added and removed later, on disk beside the bank
pairs.py         all pairs above a similarity, all neighbours of all: in blocks, in fixed memory, exactly
approximate.py   nearly all neighbours, sooner: an HNSW graph and exact ranking
postgres.py      a copy on a PostgreSQL server with pgvector
groups.py        near-duplicate groups by complete linkage
strangeness.py   how unlike all others a picture is
graph.py         each picture's ten nearest, kept on disk
spreading.py     a few labels spread over that graph, and how far to trust them
labelling.py     what to label next
"""
