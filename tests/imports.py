"""The slow imports of the process from which the tests fork parties. That process opens no channel."""

import parties.__main__
import parties.program_process.part
import parties.roles.data_owner
import parties.roles.dealer
import parties.roles.model_owner
import parties.roles.service
import parties.roles.start_party
import parties.runs.deployed_run
import parties.runs.plaintext

assert parties.__main__
