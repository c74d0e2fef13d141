"""HTML reports in one file: no network, readable on a phone, in light and dark mode, and on paper.

write_report("runs/birds")                                    # the page of a run, from what lies in its folder
write_page("page.html", "Title", [Section("Result", [Table(["weights", "top-1"], [["random", 0.31]])])])
"""

from ssl_toolkit.report.page import Code, Figure, Section, Table, Text, write_page
from ssl_toolkit.report.run_report import write_report

__all__ = ["Code", "Figure", "Section", "Table", "Text", "write_page", "write_report"]
