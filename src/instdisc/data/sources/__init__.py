"""Collections of pictures as rows: folders, tar shards, Parquet files, arrays; their ids and labels."""
