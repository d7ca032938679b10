"""An inventory that takes a silent broker for wrong topics, as it once did: for the test that must notice."""

from eventlog import kafka
from inventory import __main__ as program
from tests.planted.builds.planting import exchange

if __name__ == "__main__":
    exchange(kafka, TopicsUnknown=kafka.TopicsWrong)
    program.main()
