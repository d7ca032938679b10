"""The reader of counting records (`reader`, pure) and the Kafka clients as every service uses them (`kafka`)."""
