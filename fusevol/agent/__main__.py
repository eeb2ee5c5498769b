"""`python -m fusevol.agent '<json>'`: started by the keeper."""

from fusevol.agent.main import main

if __name__ == "__main__":
    main()
