package reload

// NewAt is New of a process that calls at with each step of an upgrade.
func NewAt(config Config, at func(step string)) (*Upgrader, error) {
	return newUpgrader(config, faults{at})
}
