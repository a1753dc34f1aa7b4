"""How other systems read us: CDS Hooks, FHIR, SMART."""
