"""`python -m tools.ledger.show FILE …`: results as tables of the ledger, by the files' names."""

import sys
from pathlib import Path

from tools.ledger.records import read_record
from tools.ledger.tables import TABLES


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        record = read_record(path)
        tables = (table.markdown() for table in TABLES[path.stem](record.rows))
        print(*tables, record.origin, sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
