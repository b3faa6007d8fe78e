class Request:
    _expected_100_continue: bool
