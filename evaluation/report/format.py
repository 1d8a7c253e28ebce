"""Tables and their cells: numbers as people read them, and CSV, Markdown and LaTeX."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A value with, where it has one, its spread; ``best`` sets it bold and ``mark`` follows it (†, *)."""

    value: float | str | None = None
    sd: float | None = None
    n: int | None = None
    best: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Column:
    """A column; ``kind`` is text, number, count, duration or factor. ``spread`` columns carry sd and n in CSV."""

    key: str
    title: str
    kind: str = "text"
    spread: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be written in any of the formats. ``aside`` holds the numbers of rows set apart."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    aside: frozenset[int] = frozenset()

    def without_empty_columns(self, keep: Sequence[str] = ()) -> "Table":
        """The table without columns in which no row has a value."""
        used = [
            number
            for number, column in enumerate(self.columns)
            if column.key in keep or column.kind == "text" or any(row[number].value is not None for row in self.rows)
        ]
        columns = [self.columns[number] for number in used]
        return replace(self, columns=columns, rows=[[row[number] for number in used] for row in self.rows])


# A row by the keys of its columns: cells, or values that get a cell of their own.
Row = Mapping[str, Cell | float | str | None]


def cells(columns: Sequence[Column], *rows: Row) -> list[list[Cell]]:
    """Rows in the order of the columns; a cell that a row lacks is empty."""
    in_order = [[row.get(column.key) for column in columns] for row in rows]
    return [[value if isinstance(value, Cell) else Cell(value) for value in row] for row in in_order]


def format_value(value: float | str | None, kind: str = "number", sd: float | None = None) -> str:
    """A value with sensible digits: the spread decides where there is one, otherwise three significant digits."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, str):
        return value
    if kind == "duration":
        return _format_duration(value)
    if kind == "count":
        return _format_count(value)
    if kind == "factor":
        return f"{_significant(value)}×"
    if sd is not None and sd > 0 and math.isfinite(sd):
        digits = -math.floor(math.log10(sd))
        # Two digits where the first is a 1: 0.1 might stand for anything between 0.095 and 0.15.
        digits += round(sd * 10.0**digits, 6) < 2
        if digits > 6:
            return f"{value:.2e} ± {sd:.0e}"
        return f"{value:,.{max(digits, 0)}f} ± {sd:,.{max(digits, 0)}f}"
    text = _significant(value)
    return f"{text} ± 0" if sd == 0 else text


def printed_precision(value: float) -> float:
    """Half a unit of the last of the three digits that a value without spread is printed with."""
    return 0.5 * 10.0 ** (math.floor(math.log10(abs(value))) - 2)


def _significant(value: float, digits: int = 3) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(decimals, 0)}f}"


def _format_count(value: float) -> str:
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return _significant(value / (1e3 if suffix == " k" else size)) + suffix
    return f"{value:,.0f}"


def _format_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{_significant(seconds)} s" if seconds < 9.995 else f"{seconds:.0f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def cell_text(cell: Cell, column: Column) -> str:
    """A cell as plain text."""
    text = format_value(cell.value, column.kind, cell.sd)
    return text + cell.mark if text != MISSING else text


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, inside a table too."""
    for plain, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, escaped)
    for character in "|*_`[]#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


_TEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$"},
    **{"†": r"$\dagger$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--", "−": "$-$", "²": "$^2$", "§": r"\S{}"},
    **{"√": r"$\sqrt{\ }$", "≤": r"$\leq$", "≥": r"$\geq$", "‡": r"$\ddagger$", "…": r"\dots{}"},
}


def escape_tex(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_TEX.get(character, character) for character in text)


def to_csv(table: Table) -> str:
    """The table with unrounded numbers; a spread becomes three columns: mean, ``_sd`` and ``_n``."""
    header: list[str] = []
    for column in table.columns:
        header += [column.key, f"{column.key}_sd", f"{column.key}_n"] if column.spread else [column.key]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        fields: list[object] = []
        for cell, column in zip(row, table.columns, strict=True):
            fields += [cell.value, cell.sd, cell.n] if column.spread else [cell.value]
        writer.writerow(["" if value is None else _plain(value) for value in fields])
    return out.getvalue()


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def to_markdown(table: Table) -> str:
    """The table as GitHub shows it, under its title and over its caption."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [f"**{escape_markdown(table.title)}**", ""]
    lines.append(line(escape_markdown(column.title) for column in table.columns))
    lines.append(line("---" if column.kind == "text" else "---:" for column in table.columns))
    for row in table.rows:
        texts = []
        for cell, column in zip(row, table.columns, strict=True):
            text = escape_markdown(cell_text(cell, column))
            texts.append(f"**{text}**" if cell.best else text)
        lines.append(line(texts))
    lines += ["", escape_markdown(table.caption)]
    lines += [f"\n{escape_markdown(note)}" for note in table.notes]
    return "\n".join(lines) + "\n"


def to_tex(table: Table) -> str:
    """The table as a LaTeX float with booktabs rules."""
    spec = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    caption = " ".join([f"{table.title}.", table.caption, *table.notes])
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_tex(caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        " & ".join(escape_tex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number in table.aside and number - 1 not in table.aside and number > 0:
            lines.append(r"\midrule")
        texts = []
        for cell, column in zip(row, table.columns, strict=True):
            text = escape_tex(cell_text(cell, column))
            texts.append(rf"\textbf{{{text}}}" if cell.best else text)
        lines.append(" & ".join(texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def write_table(table: Table, folder: Path) -> None:
    """Writes ``<name>.csv``, ``.md`` and ``.tex`` into an existing folder."""
    for suffix, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_tex(table))):
        (folder / f"{table.name}.{suffix}").write_text(text, encoding="utf-8")
