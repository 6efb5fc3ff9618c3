"""The papers' claims as commands: each study is a question, its runs as data, and the tests that answer it."""
