package certificates

// DevelopmentUnit is what marks the certificates of `keysvc certs dev`.
const DevelopmentUnit = developmentUnit
