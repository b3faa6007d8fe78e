class AcceleratorState:
    @staticmethod
    def _reset_state(reset_partial_state: bool = ...) -> None: ...

class GradientState:
    @staticmethod
    def _reset_state() -> None: ...
