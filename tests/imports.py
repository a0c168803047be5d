"""What the process that others are forked from has imported: all that is slow. It opens no channel to anybody."""

import parties.__main__
import parties.roles.data_owner
import parties.roles.dealer
import parties.roles.model_owner
import parties.roles.service
import parties.roles.start_party
import parties.runs.deployed_run
import parties.runs.plaintext

assert parties.__main__
