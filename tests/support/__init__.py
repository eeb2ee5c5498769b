"""What the tests stand on: a real API server (`cluster`), a faulty way to it (`proxy`), processes (`processes`)."""
