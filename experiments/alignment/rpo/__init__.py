"""RPO: DPO whose likelihood term keeps the policy where the comparisons are."""
