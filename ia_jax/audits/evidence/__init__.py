"""Is a report evidence? What there is for and against a claim (`kinds`, from the numbers of `tables` and the replies of
`deeds`), and what it amounts to (`calibration`).
"""
