"""Counts what concerns lines of a file, and keeps the numbers of the first ones."""

from dataclasses import dataclass, field

from app.core.job.data_report import MAX_LINES_NAMED, DataWarning, FileParam


@dataclass(slots=True)
class NamedLines:
    """What is wrong in one way.

    Attributes:
        count: how often it was found.
        lines: the first lines it was found in.
        same_as: the line that each of them repeats, where that is what is wrong.
    """

    count: int = 0
    lines: list[int] = field(default_factory=list[int])
    same_as: list[int] = field(default_factory=list[int])

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < MAX_LINES_NAMED and line not in self.lines[-1:]:
            self.lines.append(line)

    def warn(self, code: str, message: str, param: FileParam | None) -> list[DataWarning]:
        """The warning of it; none if it was not found.

        Args:
            code: stable and machine-readable.
            message: what was found and what to do. `{count}` stands for how often it was.
            param: the file that it concerns.
        """
        if not self.count:
            return []
        return [
            DataWarning(
                code=code,
                message=message.replace("{count}", f"{self.count:,}"),
                param=param,
                count=self.count,
                lines=tuple(self.lines),
                same_as=tuple(self.same_as),
            )
        ]
