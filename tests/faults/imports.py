"""What the process that others are forked from has imported: everything slow. It opens no channel: gRPC must not fork."""

import parties.__main__
import parties.coordinate
import parties.data_owner
import parties.dealer
import parties.model_owner
import parties.service

assert parties.__main__
