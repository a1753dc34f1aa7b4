"""Clinical facts as rows: concepts, codes, units and score bands, each with its source."""
