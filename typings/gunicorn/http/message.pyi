class Request:
    headers: list[tuple[str, str]]
    _expected_100_continue: bool
    def force_close(self) -> None: ...
