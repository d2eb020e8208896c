"""The memory bank: one unit row an instance, on one process or sharded over many, and the sums over it.

    bank = MemoryBank(50_000)                        # random unit rows, drawn from a seed
    scores = bank.scores(features, indices)          # cosines with some rows
    log_z = bank.log_partition(features, 0.07)       # log of the sum over all rows, exact, in blocks
    bank.update(indices, features.detach())          # the only write

Row i belongs to instance i. Each rank holds a contiguous share of the rows (`ranks.share`); every method takes this
rank's part of the batch and answers for it, whichever rank holds the rows; one process is the same code with nothing to
send. Gradients reach `features` and never the rows. They are derived by hand, so no collective stands in a graph.
"""

from instdisc.bank.choice import RowsChoice, choose_rows
from instdisc.bank.memory_bank import MemoryBank
from instdisc.bank.rows import Rows, full_precision

__all__ = ["MemoryBank", "Rows", "RowsChoice", "choose_rows", "full_precision"]
