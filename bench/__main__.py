"""`python -m bench`. Imports nothing by itself: spawned processes import this file, too."""

if __name__ == "__main__":
    from bench.commands import app

    app()
