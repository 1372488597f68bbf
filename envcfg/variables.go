package envcfg

// A variable is one that Load knows. This table is the only place that has names, defaults and meanings: decoding, the
// search for misspelt names, the printed settings, .env.example and docs/environment.md are made of it.
type variable struct {
	name     string
	initial  string // what it is where it is not set; "": the meaning tells
	accepts  string
	example  string
	meaning  string // a few words
	details  string // for the documentation
	personal bool   // of one service alone: with a prefix, the variable without it does not count
}

const (
	varPort     = "PORT"
	varHost     = "HOST"
	varAddress  = "LISTEN_ADDRESS"
	varEnv      = "APP_ENV"
	varRanges   = "PORT_RANGES"
	varStrategy = "BERTH_STRATEGY"
	varReclaim  = "BERTH_RECLAIM"
	varGrace    = "BERTH_GRACE"
	varWait     = "BERTH_WAIT"
	varName     = "BERTH_NAME"
	varStateDir = "BERTH_STATE_DIR"
	varPortFile = "BERTH_PORT_FILE"
	varDrain    = "BERTH_DRAIN"
	varLog      = "BERTH_LOG"
	varOrigins  = "FRONTEND_URL"
	varTestMode = "TEST_MODE_ENABLED"
)

var variables = []variable{
	{
		name: varPort, initial: "3000", example: "8080", personal: true,
		accepts: "a number from 0 to 65535",
		meaning: "port to listen on (0: any free one)",
	},
	{
		name: varHost, example: "127.0.0.1",
		accepts: "an IP address or a host name",
		meaning: "address or name to listen on (unset: all interfaces)",
		details: "localhost is one address, usually 127.0.0.1, and not ::1 as well. 0.0.0.0 and :: are all interfaces of both families. Some shells set HOST to the name of the machine.",
	},
	{
		name: varAddress, example: "unix:/run/web.sock", personal: true,
		accepts: "host:port, unix:/path or fd:NAME",
		meaning: "whole address, in place of HOST and PORT",
		details: "unix:/path is a Unix socket, and unix:@name one without a file (Linux). fd:NAME, or fd:3, is the socket that systemd passed under this name or number; where it is a Unix socket write unix:fd:NAME.",
	},
	{
		name: varEnv, initial: string(Production), example: "development",
		accepts: "development (dev), staging (stage) or production (prod)",
		meaning: "environment that the program runs in",
		details: "It implies BERTH_STRATEGY: reclaim,fallback,failfast in development, fallback,failfast in staging, failfast in production. test is accepted together with TEST_MODE_ENABLED=true.",
	},
	{
		name: varRanges, initial: "3000-3010,8000-8010,9000-9010", example: "3000-3010,8080",
		accepts: "port ranges, separated by commas",
		meaning: "ports that fallback tries, in this order (0: any free one)",
	},
	{
		name: varStrategy, example: "wait,fallback",
		accepts: "some of wait, reclaim, fallback and failfast, separated by commas, failfast last",
		meaning: "what to do when the address is taken, in this order",
		details: "wait tries again for BERTH_WAIT, reclaim stops the processes that have the address as far as BERTH_RECLAIM allows, fallback moves along PORT_RANGES, failfast fails with a diagnosis, as does the end of the list. Unset: what APP_ENV implies.",
	},
	{
		name: varReclaim, initial: string(reclaimOurs), example: "never",
		accepts: "ours, mine or never",
		meaning: "whom reclaim may stop",
		details: "ours: an earlier run of this program; mine: any process of this user; never: nobody, reclaim is left out. SECURITY.md lists whom no setting allows to stop.",
	},
	{
		name: varGrace, initial: "5s", example: "10s",
		accepts: "a duration, 0 or more",
		meaning: "time between asking a process to end and killing it",
		details: "0: kill at once.",
	},
	{
		name: varWait, initial: "10s", example: "30s",
		accepts: "a duration above 0",
		meaning: "how long wait tries",
	},
	{
		name: varName, example: "web", personal: true,
		accepts: "a name",
		meaning: "name of the service (unset: none)",
		details: "It stands in records and logs, and is the name of the socket that systemd passes (FileDescriptorName=). With a prefix it is the prefix in lower case, unless set.",
	},
	{
		name: varStateDir, example: "/run/web",
		accepts: "a path",
		meaning: "directory for locks and records (unset: the default of the user)",
		details: "Unset: berth below $XDG_RUNTIME_DIR, for root /run/berth, else berth-UID in the directory for temporary files. The programs that share one see each other.",
	},
	{
		name: varPortFile, example: "/run/web/port", personal: true,
		accepts: "a path",
		meaning: "file to write the address to (unset: none)",
		details: "It is written once the address is obtained, and removed at the end.",
	},
	{
		name: varDrain, initial: "30s", example: "1m",
		accepts: "a duration, 0 or more",
		meaning: "how long connections have to finish at a stop or an upgrade",
		details: "0: they are closed at once.",
	},
	{
		name: varLog, example: "debug,json",
		accepts: "debug, info, warn, error or off, and text or json",
		meaning: "log on stderr (unset: the logger of the program)",
		details: "Without a level it is info, without a form text. The logger of the program is that of slog.Default.",
	},
	{
		name: varOrigins, example: "https://app.example.com,http://localhost:5173",
		accepts: "origins, separated by commas",
		meaning: "pages that may read the health endpoints (unset: none)",
		details: "An origin is scheme, host and port.",
	},
	{
		name: varTestMode, initial: "false", example: "true",
		accepts: "true or false",
		meaning: "never stop a process, and take any free port",
		details: "It wins over everything else: the port that is asked for is tried first, then any free one.",
	},
}
