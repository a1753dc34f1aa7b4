"""What a hospital points at us: the process that takes HL7 v2 over MLLP, the one that reads its log, and POST /fhir."""
